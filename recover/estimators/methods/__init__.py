"""The estimators, one file each: a module here is a method that `--method` offers."""
