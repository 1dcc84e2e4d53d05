"""What Headway is about: releases, rollouts, metrics, interactions and feedback, as pure values and functions."""
