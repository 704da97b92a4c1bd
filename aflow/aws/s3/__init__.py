"""Users' own data in S3: a client beside the datastore."""
