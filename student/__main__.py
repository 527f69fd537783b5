"""`python -m student`: what a launcher such as torchrun starts."""

from student.cli.train import main

main()
