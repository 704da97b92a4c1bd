"""Users' own data in S3: a client in addition to the datastore."""
