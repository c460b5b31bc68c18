#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tycho/analyzer/live_finding.h"
#include "tycho/probe_loss.h"
#include "tycho/session_options.h"

namespace at {
class Tensor;
}
namespace torch::nn {
class Module;
}
namespace torch::optim {
class Optimizer;
}
namespace torch::jit {
struct Module;
}

namespace tycho {

class Probe;

/// A verdict of a law on the run so far, or an alarm: see analyzer::LiveFinding.
using Finding = analyzer::LiveFinding;
using Verdict = analyzer::Verdict;
using Severity = analyzer::Severity;

/// Observes one model and its optimizer while they train. See README.md and docs/session.md.
/// Constructors throw OptionError if the options or the model cannot be used; any other failure in
/// them is reported, and the session observes nothing. Calls from inside a loss or a probe that the
/// session is evaluating are refused and reported, except close(), which then takes effect at the
/// end of the step.
class Session {
 public:
  Session(torch::nn::Module& model, torch::optim::Optimizer& optimizer, SessionOptions options);
  Session(torch::jit::Module& model, torch::optim::Optimizer& optimizer, SessionOptions options);
  /// Several optimizers that share the model's parameters. Their groups are numbered consecutively,
  /// in this order. They must outlive the session; OptionError if one is null.
  Session(torch::nn::Module& model, std::vector<torch::optim::Optimizer*> optimizers,
          SessionOptions options);
  /// Several modules as one model, such as actor and critic: each path begins with the name, which
  /// has no dots. They must outlive the session; OptionError if one is null.
  Session(std::vector<std::pair<std::string, torch::nn::Module*>> modules,
          std::vector<torch::optim::Optimizer*> optimizers, SessionOptions options);
  /// Tensors without a module: leaves that require gradients. Each is a separate layer, named by
  /// its position in the list: "0", "1", ...
  Session(std::vector<at::Tensor> parameters, torch::optim::Optimizer& optimizer,
          SessionOptions options);
  Session(std::vector<at::Tensor> parameters, std::vector<torch::optim::Optimizer*> optimizers,
          SessionOptions options);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  /// Adds a custom probe, before the first step. `every` >= 1: observed at multiples of that many
  /// steps, whatever the budget; 0: scheduled like the preset's probes. Its name and statistics
  /// must be new.
  void add_probe(std::unique_ptr<Probe> probe, int64_t every = 0);
  /// A loss on a fixed probe batch: unlocks statistics of the loss surface, such as sharpness.
  /// Evaluated inside step() with the observer off; parameters, RNG state, buffers, gradients and
  /// training flags are restored bit for bit. A loss that throws, is not a scalar, not
  /// differentiable, not finite or not repeatable is reported once and not evaluated again.
  void set_probe_loss(std::function<at::Tensor()> probe_loss);
  /// The same in chunks, or with the network's output separate from the loss.
  void set_probe_loss(ProbeLoss probe_loss);
  /// The loss on the batch of the step that is ending, evaluated again inside step(), to measure
  /// what the step did to the loss that it minimised. Without it, the probe loss is used.
  void set_step_loss(std::function<at::Tensor()> step_loss);
  /// The loss on fresh batch `index`, drawn as training draws them; the same index always means the
  /// same batch. Called with indices 0, 1, 2, ...
  void set_batch_loss(std::function<at::Tensor(int64_t index)> batch_loss);
  /// The factor by which the loss is multiplied before backward (mixed precision). Takes effect
  /// from the next backward pass on.
  void set_loss_scale(double scale);

  /// Ends the step: call after optimizer.step(). `loss` is the (unscaled) loss the step minimised,
  /// a scalar; `batch_size` the number of examples of the whole step, all microbatches together.
  void step(const at::Tensor& loss, int64_t batch_size);
  void step(double loss, int64_t batch_size);

  /// Records the loss on held-out data at the current parameters, a scalar. Call it between steps,
  /// whenever the trainer has evaluated that loss, after the first step; it also counts under a
  /// Pause. The value is recorded with the step that has ended (statistic validation_loss), and the
  /// report says when it was lowest and whether it has risen. Waits for a tensor on another device.
  void validation(const at::Tensor& loss);
  void validation(double loss);

  /// While the guard exists, this session observes nothing (for evaluation, or another network's
  /// backward pass).
  class Pause {
   public:
    explicit Pause(Session* session);
    Pause(Pause&& other) noexcept;
    ~Pause();
    Pause(const Pause&) = delete;
    Pause& operator=(const Pause&) = delete;
    Pause& operator=(Pause&&) = delete;

   private:
    Session* session_;
  };
  [[nodiscard]] Pause pause();

  /// Live verdicts (docs/session.md). The first of these three calls starts a thread that judges
  /// what is recorded from then on, as the report does; without such a call there is no thread. The
  /// trainer never waits for it, its CPU time counts against the overhead budget, and its findings
  /// are written into the trace.
  ///
  /// `listener` is called on that thread, one call at a time, when a verdict is reached or changes
  /// and when an alarm is raised or ends; never after close() has returned, unless a call takes
  /// longer than ten seconds. An exception from it is reported once. It may call findings(),
  /// verdict() and close(), which then takes effect in the trainer's next step; other calls to the
  /// session are ignored and reported. It may destroy the session while no other thread is in a
  /// call to it. It must not wait for the thread that closes the session.
  void on_finding(std::function<void(const Finding&)> listener);
  /// Active alarms, most serious first, then all verdicts by importance, as of the latest
  /// evaluation; after close(), the final ones. Empty until the first observed step is judged. May
  /// be called from any thread once one of the three was called.
  std::vector<Finding> findings();
  /// Verdict of a law for the whole run: findings() without the copies. NOT_YET while nothing is
  /// known, and for an unknown law, which is reported.
  Verdict verdict(const std::string& law);

  /// Where the trace is: the directory of the options, or the numbered one used instead. Empty if
  /// the session is switched off.
  std::string directory() const;

  /// Writes what is pending and seals the trace. Idempotent; the destructor does it too.
  void close();

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace tycho
