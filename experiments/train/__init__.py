"""How one student of the experiments is trained and measured."""
