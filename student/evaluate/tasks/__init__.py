"""What a student can do: tasks, facts in long text, and its own writing, beside its teacher."""
