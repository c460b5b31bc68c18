#include "src/serve/server.h"

// In place of server.cpp where cpp-httplib was not there when this was built.
namespace tycho::analyzer {

bool can_serve() { return false; }

Result<std::unique_ptr<Server>> Server::open(const ServerOptions&, RunCatalog*) {
  return Status(Status::Code::kInvalidArgument,
                "this tycho was built without cpp-httplib: install libcpp-httplib-dev and build it "
                "again");
}

}  // namespace tycho::analyzer
