"""`python -m student`: what a launcher such as torchrun starts."""

from student.cli import main

main()
