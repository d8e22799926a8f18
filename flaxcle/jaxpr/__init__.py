"""The view of a function that finding and measuring share; `trace.py` alone touches jax's types."""

from flaxcle.jaxpr.depthwise import Computed as Computed
from flaxcle.jaxpr.depthwise import computed as computed
from flaxcle.jaxpr.graph import Graph as Graph
from flaxcle.jaxpr.graph import Op as Op
from flaxcle.jaxpr.graph import Value as Value
from flaxcle.jaxpr.program import Program as Program
from flaxcle.jaxpr.program import trace as trace
from flaxcle.jaxpr.run import Action as Action
from flaxcle.jaxpr.run import Actions as Actions
from flaxcle.jaxpr.run import Result as Result
