"""`python -m teacher_cache` is `teacher-cache`."""

from teacher_cache.cli import main

main()
