"""What aflow needs in AWS: a CloudFormation template, and settings out of the stack made of it."""
