"""Checkpoints: what one holds (`content`), where they lie (`folders`), how they are written (`snapshot`, `writer`).

A checkpoint either has a COMMIT.json whose hashes hold, or it is none.
"""

from pretrain.checkpoint.content import Checkpoint as Checkpoint
from pretrain.checkpoint.content import committed as committed
from pretrain.checkpoint.content import latest as latest
from pretrain.checkpoint.content import verify as verify
from pretrain.checkpoint.content import whole as whole
from pretrain.checkpoint.folders import Disk as Disk
from pretrain.checkpoint.folders import Folder as Folder
from pretrain.checkpoint.folders import folder_of as folder_of
from pretrain.checkpoint.folders import folder_of_run as folder_of_run
from pretrain.checkpoint.writer import CheckpointConfig as CheckpointConfig
from pretrain.checkpoint.writer import Failed as Failed
from pretrain.checkpoint.writer import Saved as Saved
from pretrain.checkpoint.writer import Writer as Writer
from pretrain.checkpoint.writer import save as save
from pretrain.fragments import STATES as STATES
from pretrain.fragments import Fragment as Fragment
