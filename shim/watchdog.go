package shim

import (
	"context"
	"fmt"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"k8s.io/klog/v2"
)

// watch tells systemd twice in its interval that the daemon is alive, as long as
// check answers: a daemon that cannot list its pods is better restarted. It returns at
// once where no watchdog is wanted (sd_watchdog_enabled(3)).
func watch(ctx context.Context, check func() error) error {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return fmt.Errorf("watchdog: %w", err)
	}
	if interval == 0 {
		return nil
	}
	log := klog.FromContext(ctx)
	tick := time.NewTicker(interval / 2)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := check(); err != nil {
				log.Error(err, "Not telling the watchdog")
				continue
			}
			notify(log, daemon.SdNotifyWatchdog)
		}
	}
}
