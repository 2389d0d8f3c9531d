package recovery_test

import (
	"testing"

	"github.com/stormpost/stormpost/internal/devstack/teststack"
)

func TestMain(m *testing.M) { teststack.Main(m) }
