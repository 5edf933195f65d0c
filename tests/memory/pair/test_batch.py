"""Random batches, as models of Transformers read them."""

import pytest
import torch
import transformers
from torch import nn

from fastkd.errors import InputError
from fastkd.memory.pair.batch import random_batch


class Listener(nn.Module):
    """Reads sound, and does not tell how wide."""

    main_input_name = "input_features"
    config = transformers.PreTrainedConfig(vocab_size=7)


def test_the_width_of_sound_that_nobody_tells():
    told = "Listener: .* expected num_mel_bins, .* or d_model"
    with pytest.raises(InputError, match=told):
        random_batch(Listener(), None, 2, 5, None, torch.device("cpu"))
