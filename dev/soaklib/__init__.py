"""The soak: workers under random faults for as long as it is told, judged from outside."""
