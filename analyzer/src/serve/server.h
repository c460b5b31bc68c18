#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "src/serve/run_catalog.h"
#include "tycho/trace/status.h"

namespace tycho::analyzer {

struct ServerOptions {
  std::string host = "127.0.0.1";
  int port = 7117;    ///< 0: one that is free
  std::string token;  ///< empty: none is asked for; needed where the host is not this machine's own
  size_t metrics_runs = 200;  ///< how many runs have gauges of their own
  size_t most_streams = 40;   ///< pages that are brought up to date at once
};

/// Whether this program was built with cpp-httplib; without, open() fails and says so.
bool can_serve();

/// Pages, events and metrics of a catalog over HTTP: reads only, and nothing but what the catalog
/// found. A fixed number of threads answers; a client that is slow loses its connection.
class Server {
 public:
  /// Fails where the address cannot be had, and says why. `catalog` outlives the server.
  static Result<std::unique_ptr<Server>> open(const ServerOptions& options, RunCatalog* catalog);
  virtual ~Server() = default;
  virtual int port() const = 0;
  /// Answers until stop(), which may be called from another thread.
  virtual void run() = 0;
  virtual void stop() = 0;
};

}  // namespace tycho::analyzer
