"""Ways to improve a ranking template, a file each."""
