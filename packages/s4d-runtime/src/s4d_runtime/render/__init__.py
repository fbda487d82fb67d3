"""Pictures of frames: camera images with projected boxes beside a bird's-eye view."""

from .objects import Objects
from .picture import Renderer, View
from .recording import Recording
from .video import require_mp4, write_gif, write_mp4

__all__ = ["Objects", "Recording", "Renderer", "View", "require_mp4", "write_gif", "write_mp4"]
