#pragma once

#include <functional>
#include <string>
#include <vector>

#include "decisions/decision.h"
#include "lab.h"

namespace tycho::decisions {

/// A known fault of a run.
struct Fault {
  std::string name;      ///< "learning rate 10 times too high"
  std::string baseline;  ///< see baseline()
  std::function<void(RunSetup*)> make;
  std::string code;  ///< the first decision has to be this one
};

const std::vector<Fault>& faults();

/// What the report decided, and what came of following the first decision.
struct Verdict {
  std::vector<analyzer::Decision> decisions;
  double loss = 0;           ///< held out, with the fault
  double loss_followed = 0;  ///< with the first decision carried out; NaN: there was none
  bool names(const std::string& code) const;
  /// The held-out loss is lower by a twentieth or more.
  bool improves() const;
};

/// Trains with default options, reads the report, follows it. `directory` is removed afterwards.
Verdict decide(const RunSetup& setup, const std::string& directory);

}  // namespace tycho::decisions
