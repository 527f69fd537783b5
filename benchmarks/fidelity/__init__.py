"""How near a cache's distribution and gradient come to the teacher's, against its bytes."""
