#pragma once

#include <string>
#include <utility>

#include "tycho/probe.h"

namespace tycho {

/// Of an observation that cannot be made of the run: records nothing and says why, once.
inline Probe::Finish not_observed(std::string code, std::string why) {
  return [code = std::move(code), why = std::move(why)](const Arrived&, Recorder& recorder) {
    recorder.event(v1::Event::NOT_OBSERVED, code, why, v1::SCOPE_RUN, 0);
  };
}

}  // namespace tycho
