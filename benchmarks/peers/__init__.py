"""SASRec here, in RecBole 1.2.1 and in RecTools 0.19.0 at equal size: seconds an epoch and seconds a full evaluation, on a few CPU cores.

Each peer has an environment of its own, in which it runs unchanged. With Python 3.11:

    python -m venv recbole  && recbole/bin/pip install torch==2.13.0 recbole==1.2.1 "numpy==1.26.4" "pandas==2.2.3" "scipy==1.12.0"
    python -m venv rectools && rectools/bin/pip install torch==2.13.0 "rectools[torch]==0.19.0"

(Where the index offers CUDA builds, take torch from PyTorch's CPU index first.) RecBole needs numpy below 2 (it sets `np.float_`)
and otherwise runs with these versions as it is; its saved checkpoints do not load with torch 2.6 or later, and none is saved here.
Then, from the repository root:

    python -m benchmarks.peers --recbole recbole/bin/python --rectools rectools/bin/python
"""
