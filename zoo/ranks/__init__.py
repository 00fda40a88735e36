"""The processes of a run that is spread over several: who they are, what they agree on, and what each one holds."""
