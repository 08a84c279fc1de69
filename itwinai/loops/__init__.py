"""The lean loops: Lightning's loops, with what a run does not need left out of every step.

What happens in a fit, and in which order, is Lightning's. This is the map, with the places where workers meet (=>) and
where a checkpoint can be written and resumed from exactly ([place], see `checkpoints.state.StopPoint`)::

    fit                                          loops.fit.LeanFitLoop
      for each epoch:
        on_train_epoch_start
        TrainingPlan(...)                        loops.training: the hooks that have an implementation
        for each batch:                          loops.training.LeanTrainingEpochLoop.advance
          stop_if_agreed                         after a signal: all workers stop before the same batch
          batch = next(loader)                   converted and moved to the device
          on_train_batch_start                   callbacks, module, strategy; -1 from the module skips the rest
          optimizer_step(closure)                loops.optimization.LeanOptimization; the closure runs
            training_step                        forward; DDP's wrapper shares buffers =>
            on_before_zero_grad, optimizer_zero_grad     in the first batch of an accumulation window
            weigh_loss                              data.weights: batches of unequal size count by their samples
            on_before_backward, backward            gradients are averaged while backward runs =>
            on_after_backward                       in the last batch of a window; the others skip the averaging
            on_before_optimizer_step
            configure_gradient_clipping             after averaging, so that every strategy clips the same numbers
          lr_scheduler_step                      interval "step"; "epoch" in the last batch
          sync of self.log(..., sync_dist=True)  one exchange for all keys of the step => loops.metric_sync
          on_train_batch_end                     callbacks, module                                          [batch]
          metrics to the loggers                 every log_every_n_steps
          validation                             where val_check_interval says so        loops.evaluation [validation]
          plateau schedulers                                                                            [iteration]
        end_together                             all workers end the epoch here, or an error names who does not =>
        metrics and logged values of the epoch   synchronized over workers =>
        compare_ranks                            weights that differ between workers are an error =>
        on_train_epoch_end                                                             [end of epoch], then [epoch]

A hook without an implementation costs nothing: `hook_plan` finds that out once per epoch, `training` and `evaluation`
run the plan. What a plan cannot express is run by Lightning's own loop, and a debug message says why. A thread beside
the training (`store_monitor`) looks at the store of the workers, so that a worker that waits in vain is found out
(`desync_detection`) without a collective operation in every step.

To change what a step does, write a hook in a callback or the module, or one of the protocols of `itwinai.interfaces`:
the loops call those as well. To change the order is to leave Lightning's contract: tests compare it hook by hook.
"""
