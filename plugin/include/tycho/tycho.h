#pragma once

/// The one header a trainer includes.
#include "tycho/probe.h"
#include "tycho/session.h"
