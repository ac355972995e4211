package program

import (
	"context"
	"time"
)

// Outlive returns a context that ends so long after ctx, with the function that ends it
// before: a program that is to end serves on while others find out. With no time it
// ends with ctx.
func Outlive(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d <= 0 {
		return context.WithCancel(ctx)
	}
	longer, end := context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() {
		t := time.AfterFunc(d, end)
		context.AfterFunc(longer, func() { t.Stop() })
	})
	return longer, end
}
