"""AWS Batch as a job system: definitions of jobs, and what it says of jobs that have ended."""
