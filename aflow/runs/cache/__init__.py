"""What a task's result depends on: to use a result again, and to say in words why one was not."""
