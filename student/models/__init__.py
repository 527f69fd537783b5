"""Students: block stacks around the teacher's frozen embedding and LM head."""
