"""The GPU that is not there: what a driver library, torch and Triton answer for a target."""
