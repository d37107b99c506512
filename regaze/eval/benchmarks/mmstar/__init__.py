"""MMStar: does a model still see and reason; the check whether an intervention broke it."""
