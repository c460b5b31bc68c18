#include "src/serve/server.h"

#include <fmt/format.h>
#include <httplib.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <set>
#include <type_traits>

#include "src/serve/access.h"
#include "src/serve/compared_page.h"
#include "src/serve/metrics.h"
#include "src/serve/pages.h"

namespace tycho::analyzer {
namespace {

using nlohmann::json;
using std::chrono::milliseconds;

constexpr size_t kThreads = 64;
constexpr size_t kMostWaiting = 256;
constexpr int kTimeoutSeconds = 5;
constexpr milliseconds kFirstPage{3000};
constexpr std::chrono::seconds kMostComparing{60};
// Between two events of a stream.
constexpr milliseconds kPace{500};
constexpr milliseconds kKeepAlive{10000};

std::string text_of(const json& value) {
  // Names come from the user's program and need not be UTF-8.
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string event_of(const json& value) { return "data: " + text_of(value) + "\n\n"; }

int64_t wall_clock_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// Newer versions bound the connections that wait for a thread.
template <typename Pool>
httplib::TaskQueue* make_pool() {
  if constexpr (std::is_constructible_v<Pool, size_t, size_t>) {
    return new Pool(kThreads, kMostWaiting);
  } else {
    return new Pool(kThreads);
  }
}

json cards_event(const RunCatalog::Cards& cards, uint64_t since, std::set<std::string>* known) {
  json runs = json::array();
  std::set<std::string> names;
  for (const auto& card : cards.cards) {
    names.insert(card->name);
    if (card->version > since || known->count(card->name) == 0) runs.push_back(card_json(*card));
  }
  json removed = json::array();
  for (const std::string& name : *known) {
    if (names.count(name) == 0) removed.push_back(name);
  }
  *known = std::move(names);
  return {{"version", cards.version},
          {"all", since == 0},
          {"runs", std::move(runs)},
          {"removed", std::move(removed)},
          {"complete", cards.complete}};
}

class HttpServer : public Server {
 public:
  HttpServer(ServerOptions options, RunCatalog* catalog)
      : options_(std::move(options)),
        catalog_(catalog),
        access_(options_.token, is_loopback(options_.host)) {}

  Status bind() {
    http_.new_task_queue = [] { return make_pool<httplib::ThreadPool>(); };
    // The library's own choice lets two servers have one port.
    http_.set_socket_options([](auto socket) {
      const int yes = 1;
      ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    });
    http_.set_read_timeout(kTimeoutSeconds);
    http_.set_write_timeout(kTimeoutSeconds);
    http_.set_payload_max_length(1024);
    http_.set_tcp_nodelay(true);
    http_.set_default_headers(
        {{"X-Content-Type-Options", "nosniff"},
         {"Referrer-Policy", "no-referrer"},
         {"Cache-Control", "no-store"},
         {"X-Frame-Options", "DENY"},
         // Pages hold their scripts and styles, as a report does, and ask nobody else for anything.
         {"Content-Security-Policy",
          "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src "
          "data:; "
          "connect-src 'self'; base-uri 'none'; form-action 'none'"}});
    route();
    errno = 0;
    if (options_.port == 0) {
      port_ = http_.bind_to_any_port(options_.host);
    } else if (http_.bind_to_port(options_.host, options_.port)) {
      port_ = options_.port;
    }
    if (port_ > 0) return Status();
    const int error = errno;
    return Status(Status::Code::kIoError,
                  fmt::format("cannot listen on {} port {}: {}", options_.host, options_.port,
                              error != 0 ? std::strerror(error) : "the address is not known"));
  }

  int port() const override { return port_; }
  void run() override { http_.listen_after_bind(); }
  void stop() override { http_.stop(); }

 private:
  using Request = httplib::Request;
  using Response = httplib::Response;

  void route() {
    http_.set_pre_routing_handler([this](const Request& request, Response& response) {
      return refuse(request, response) ? httplib::Server::HandlerResponse::Handled
                                       : httplib::Server::HandlerResponse::Unhandled;
    });
    http_.Get("/", [](const Request&, Response& response) { show(list_page(), &response); });
    http_.Get("/metrics", [this](const Request&, Response& response) {
      response.set_content(metrics_text(catalog_->cards().cards, options_.metrics_runs,
                                        wall_clock_ns(), catalog_->alerts()),
                           "text/plain; version=0.0.4; charset=utf-8");
    });
    http_.Get("/api/runs", [this](const Request&, Response& response) {
      std::set<std::string> known;
      response.set_content(text_of(cards_event(catalog_->cards(), 0, &known)), "application/json");
    });
    http_.Get("/api/run", [this](const Request& request, Response& response) {
      with_page(request, response, [&](const std::string&, const RunPage& page) {
        response.set_content(page.json, "application/json");
      });
    });
    http_.Get("/report", [this](const Request& request, Response& response) {
      with_page(request, response,
                [&](const std::string&, const RunPage& page) { show(page.html, &response); });
    });
    http_.Get("/compare",
              [this](const Request& request, Response& response) { compare(request, &response); });
    http_.Get("/events", [this](const Request&, Response& response) { stream_cards(response); });
    http_.Get("/events/run", [this](const Request& request, Response& response) {
      stream_run(request, response);
    });
    // Names are looked up among those that were found, never on the disk.
    http_.Get("/run/(.+)", [this](const Request& request, Response& response) {
      const std::string name = request.matches[1];
      if (catalog_->card(name) == nullptr) return not_found(name, &response);
      const auto page = catalog_->page(name, 0, kFirstPage);
      show(page != nullptr ? live_page(name, *page) : waiting_page(name), &response);
    });
    http_.set_error_handler([](const Request& request, Response& response) {
      if (!response.body.empty()) return;
      show(message_page(fmt::format("{}", response.status),
                        response.status == 404 ? "There is no such page: " + request.path
                                               : "The request cannot be answered."),
           &response);
    });
    http_.set_exception_handler([](const Request&, Response& response, auto&&...) {
      response.status = 500;
      show(message_page("500", "The server has no memory left, or there is an error in it."),
           &response);
    });
  }

  static void show(const std::string& html, Response* response) {
    response->set_content(html, "text/html; charset=utf-8");
  }

  static void not_found(const std::string& name, Response* response) {
    response->status = 404;
    show(message_page("No such run", "There is no run " + name + " (any more)."), response);
  }

  // True: the request was answered.
  bool refuse(const Request& request, Response& response) {
    if (request.method != "GET" && request.method != "HEAD") {
      response.status = 405;
      response.set_header("Allow", "GET, HEAD");
      response.set_header("Connection", "close");
      response.set_content("This server only shows.\n", "text/plain");
      return true;
    }
    if (!access_.is_own_host(request.get_header_value("Host"))) {
      response.status = 403;
      response.set_content("This server answers under its own name only.\n", "text/plain");
      return true;
    }
    const std::string given = request.get_param_value("token");
    if (!access_.is_allowed(request.get_header_value("Authorization"),
                            request.get_header_value("Cookie"), given)) {
      response.status = 401;
      response.set_header("WWW-Authenticate", "Bearer");
      show(message_page("A token is needed",
                        "Open the address that ends in ?token=..., as tycho serve printed it."),
           &response);
      return true;
    }
    // A token in an address would stay in the browser's history.
    if (access_.asks_for_token() && !given.empty() && request.method == "GET" &&
        request.get_header_value("Accept").find("text/html") != std::string::npos) {
      response.status = 303;
      response.set_header("Set-Cookie", fmt::format("{}={}; Path=/; HttpOnly; SameSite=Strict",
                                                    kTokenCookie, given));
      response.set_header("Location", own_path(request.path));
      return true;
    }
    return false;
  }

  // The path of this server, and of no other: "//host/" would be one.
  static std::string own_path(const std::string& path) {
    std::string out = "/";
    for (const char c : path) {
      if (c == '/' && out.back() == '/') continue;
      // Decoded once, so encoded again.
      const auto byte = static_cast<unsigned char>(c);
      if (std::isalnum(byte) != 0 || std::strchr("/._~-", c) != nullptr) {
        out += c;
      } else {
        out += fmt::format("%{:02X}", byte);
      }
    }
    return out;
  }

  template <typename Use>
  void with_page(const Request& request, Response& response, const Use& use) {
    const std::string name = request.get_param_value("run");
    if (catalog_->card(name) == nullptr) return not_found(name, &response);
    const auto page = catalog_->page(name, 0, milliseconds(30000));
    if (page != nullptr) return use(name, *page);
    response.status = 503;
    response.set_header("Retry-After", "10");
    response.set_content("The run is still being read.\n", "text/plain");
  }

  void compare(const Request& request, Response* response) {
    std::vector<std::string> directories;
    std::set<std::string> names;
    for (size_t i = 0; i < request.get_param_value_count("run"); ++i) {
      const std::string name = request.get_param_value("run", i);
      if (!names.insert(name).second) continue;
      directories.push_back(catalog_->directory(name));
      if (directories.back().empty()) return not_found(name, response);
      if (directories.size() > kMostCompared) break;
    }
    const auto say = [&](int status, const std::string& what) {
      response->status = status;
      show(message_page("Runs are not compared", what), response);
    };
    if (directories.size() < 2 || directories.size() > kMostCompared)
      return say(400, fmt::format("Choose 2 to {} runs of the list.", kMostCompared));
    // It reads much: one at a time, so that the other pages stay fluent.
    if (comparing_.exchange(true)) {
      response->set_header("Retry-After", "5");
      return say(503, "Other runs are being compared: try again in a moment.");
    }
    const struct Done {
      std::atomic<bool>* comparing;
      ~Done() { *comparing = false; }
    } done{&comparing_};
    const auto end = std::chrono::steady_clock::now() + kMostComparing;
    const auto page = compared_page(directories, [&] {
      return std::chrono::steady_clock::now() > end || catalog_->stopping();
    });
    if (!page.ok()) return say(503, page.status().message());
    show(page.value(), response);
  }

  // `send` writes the next event and returns false at the end.
  template <typename Send>
  void stream(Response& response, Send send) {
    if (++streams_ > options_.most_streams) {
      --streams_;
      response.status = 503;
      response.set_header("Retry-After", "30");
      response.set_content("Too many pages are open.\n", "text/plain");
      return;
    }
    response.set_chunked_content_provider(
        "text/event-stream",
        [send = std::move(send)](size_t, httplib::DataSink& sink) mutable {
          if (!send(sink)) {
            sink.done();
            return false;
          }
          return true;
        },
        [this](bool) { --streams_; });
  }

  static bool write(httplib::DataSink& sink, const std::string& text) {
    return sink.write(text.data(), text.size());
  }

  void stream_cards(Response& response) {
    struct State {
      uint64_t version = 0;
      std::set<std::string> known;
    };
    auto state = std::make_shared<State>();
    stream(response, [this, state](httplib::DataSink& sink) {
      if (state->version != 0) {
        std::this_thread::sleep_for(kPace);
        if (catalog_->wait_for_change(state->version, kKeepAlive) == state->version)
          return !catalog_->stopping() && write(sink, ": nothing new\n\n");
      }
      if (catalog_->stopping()) return false;
      const auto cards = catalog_->cards();
      const json event = cards_event(cards, state->version, &state->known);
      const bool news = state->version == 0 || !event["runs"].empty() || !event["removed"].empty();
      state->version = cards.version;
      return !news || write(sink, event_of(event));
    });
  }

  void stream_run(const Request& request, Response& response) {
    const std::string name = request.get_param_value("run");
    if (catalog_->card(name) == nullptr) return not_found(name, &response);
    struct State {
      std::shared_ptr<const RunPage> page;
      std::shared_ptr<const RunCard> card;
      bool started = false;
      uint64_t version = 0;
    };
    auto state = std::make_shared<State>();
    state->version = std::strtoull(request.get_param_value("version").c_str(), nullptr, 10);
    stream(response, [this, state, name](httplib::DataSink& sink) {
      // Two looks a second are enough for a reader, and keep a slow one from being flooded.
      if (state->started) std::this_thread::sleep_for(kPace);
      const uint64_t shown = state->page != nullptr ? state->page->version : state->version;
      const auto page = catalog_->page(name, shown, milliseconds(state->started ? 1500 : 0));
      if (catalog_->stopping()) return false;
      const auto card = catalog_->card(name);
      json event = json::object();
      if (page != nullptr && page->version != shown) event = page_changes(state->page.get(), *page);
      if (event.is_null()) event = json::object();
      // What the client shows is known only once something was sent, or where it is the newest.
      if (page != nullptr) state->page = page;
      if (card != state->card || !state->started) {
        event["card"] = card != nullptr ? card_json(*card) : json(nullptr);
        state->card = card;
      }
      state->started = true;
      return write(sink, event.empty() ? std::string(": nothing new\n\n") : event_of(event));
    });
  }

  const ServerOptions options_;
  RunCatalog* catalog_;
  const Access access_;
  httplib::Server http_;
  int port_ = 0;
  std::atomic<size_t> streams_{0};
  std::atomic<bool> comparing_{false};
};

}  // namespace

bool can_serve() { return true; }

Result<std::unique_ptr<Server>> Server::open(const ServerOptions& options, RunCatalog* catalog) {
  auto server = std::make_unique<HttpServer>(options, catalog);
  if (Status status = server->bind(); !status.ok()) return status;
  return std::unique_ptr<Server>(std::move(server));
}

}  // namespace tycho::analyzer
