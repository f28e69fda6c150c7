"""Questions: functions of networks, sets and data that return tidy tables. Import the module that asks the question."""
