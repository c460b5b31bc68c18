#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tycho::decisions {

/// A small training run with everything that a known fault, or the remedy of one, changes.
struct RunSetup {
  std::string net = "mlp";  ///< mlp, cnn (with batch normalisation) or transformer
  bool adam = false;        ///< AdamW, else SGD
  uint64_t seed = 1;
  int64_t steps = 1000;
  int64_t batch = 64;
  double learning_rate = 0.05;
  double momentum = 0.9;  ///< of SGD
  double weight_decay = 0;
  double epsilon = 1e-8;   ///< of Adam
  double warm_up = 0;      ///< share of the steps
  double decay_from = 1;   ///< share of the steps; linear to 0 over a tenth of them from there on
  double clip = 0;         ///< largest norm of the gradient; 0: none
  double gain = 1;         ///< of the first weights, over LibTorch's
  int64_t copies = 1;      ///< of each example in its batch
  double label_noise = 0;  ///< share of labels that are random
  bool sorted = false;     ///< batches of one class each
  bool scaled_inputs = false;   ///< inputs times 100
  bool keep_gradients = false;  ///< no zero_grad
  /// A layer by its number among those with weights, counted from 0; -1: none.
  int64_t frozen = -1;    ///< is left out of the optimizer
  int64_t detached = -1;  ///< its output has no gradient
  int64_t dead = -1;      ///< its units are silent from the start
};

/// Baselines that train well: mlp (SGD with momentum), mlp_adam, cnn, transformer.
RunSetup baseline(const std::string& name);

struct Outcome {
  double held_out_loss = 0;   ///< at the end, on examples that were not trained on
  double held_out_error = 0;  ///< share of wrong predictions
};

/// Trains; with a session that writes to `directory` where it is not empty.
Outcome train(const RunSetup& setup, const std::string& directory);

}  // namespace tycho::decisions
