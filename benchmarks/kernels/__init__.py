"""The GPU kernels: checked against float64, then timed beside PyTorch, with the least time that the hardware allows.

python -m benchmarks.kernels                      # every operator, a minute each on one GPU
python -m benchmarks.kernels --only hstu_attention --csv benchmarks/results/kernels.csv
"""
