"""Several processes at one task, started by torchrun: same result as one, files by one.

Every global batch is split over the ranks. BatchNorm takes its statistics, and its gradients, over
the whole batch; dropout masks are drawn for the whole batch by every rank, which keeps its own
rows; gradients are those of the whole batch's mean loss. So the number of ranks changes no more
than the order of sums, and a run may go on with another number of them.

``launch`` joins the processes, ``ranks`` lets them agree, ``share`` splits batches, ``norms`` and
``model`` join what a batch has in common.
"""
