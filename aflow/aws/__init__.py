"""An account of AWS: its settings, the calls to it, and the definitions of jobs of AWS Batch."""
