"""Settings every test shares."""

import torch

# The problems of the tests are tiny: a second thread costs more than it brings, and one thread is reproducible.
torch.set_num_threads(1)
