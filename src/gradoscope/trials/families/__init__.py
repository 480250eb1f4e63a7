"""One file per construction family: a task, a model and data, with its faulty and its healthy trainings."""
