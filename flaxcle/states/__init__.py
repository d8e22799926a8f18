"""What training keeps beside the params, and how it follows them."""

from flaxcle.states.rescale import opt_state_slots as opt_state_slots
from flaxcle.states.rescale import rescale_opt_state as rescale_opt_state
from flaxcle.states.train import equalize_train_state as equalize_train_state
