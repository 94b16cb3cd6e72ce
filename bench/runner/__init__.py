"""Running a plan: training, cells, processes, time estimates."""
