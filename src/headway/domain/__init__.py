"""What Headway is about: releases, assignment, interactions, feedback, evidence. Pure: no I/O, no clock."""
