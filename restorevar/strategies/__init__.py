"""Strategies for Lightning's Trainer beyond those that come with it."""

from restorevar.strategies.sharded import ShardedStrategy

__all__ = ["ShardedStrategy"]
