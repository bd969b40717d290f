"""Calibration data: from any source to the very tensors that the model sees at inference.

    source --load--> Conversation --choose--> candidates --decode, processor--> Sample --> cache

    sources, presets                     what --calib names
    readers, folders, hub                files, folders and data sets, as raw rows
    rows, messages, references           a raw row to a `Conversation` in the normal form of `conversations`
    images, video, fetch                 what it refers to, decoded
    sampling, shelf, taking              which are taken, and where they wait for it
    cuts, prepare                        how long they may be, the checkpoint's own processor
    mix, cache, identity                 all of it together, kept on disk, told apart from the evaluation set

Nothing here knows the model's insides.
"""

from quantkit.calibration.conversations import Conversation
from quantkit.calibration.mix import Mix, MixOptions, build, build_from, prepare
from quantkit.calibration.prepare import PrepareOptions, Sample, fingerprint, load_processor
from quantkit.calibration.sources import load_conversations

__all__ = [
    "Conversation",
    "Mix",
    "MixOptions",
    "PrepareOptions",
    "Sample",
    "build",
    "build_from",
    "fingerprint",
    "load_conversations",
    "load_processor",
    "prepare",
]
