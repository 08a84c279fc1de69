"""The lean loops: lightning's loops, with what a run does not need left out of every step.

What happens in a training step, and in which order, is lightning's:

    batch = next(loader), converted and moved to the device
    on_train_batch_start            callbacks, module, strategy; -1 from the module skips the rest of the epoch
    optimizer_step                  the optimizer runs the closure:
        training_step
        on_before_zero_grad, optimizer_zero_grad        first batch of an accumulation window
        on_before_backward, backward, on_after_backward
        on_before_optimizer_step, configure_gradient_clipping
    lr_scheduler_step
    on_train_batch_end              callbacks, module
    metrics to the loggers          every log_every_n_steps
    validation                      where val_check_interval says so

`plan` finds out once per epoch which of these somebody has really written; `training` and `evaluation` run the plan.
What a plan cannot express is run by lightning's own loop, and a debug message says why.
"""
