"""Several processes that serve as one: started, restarted, replaced and ended.

``run`` is the parent's whole life. It serves nobody, has no thread and no event loop,
and forks before there is any: each worker makes its own of everything.
"""

from authws.service.workers.process import Worker
from authws.service.workers.siblings import Siblings, private_directory
from authws.service.workers.supervisor import run

__all__ = ["Siblings", "Worker", "private_directory", "run"]
