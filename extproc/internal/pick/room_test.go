package pick

import (
	"testing"
	"time"
)

func TestRoom(t *testing.T) {
	now := time.Unix(1000, 0)
	endpoint := func(slots int, state State, own int, r *Report) *Endpoint {
		e := &Endpoint{Slots: slots, State: state, Live: new(Live)}
		if r != nil {
			e.ReportFromFleet(*r, now)
		}
		for range own {
			e.Reserve(1, 1)
		}
		return e
	}
	tests := []struct {
		name    string
		es      []*Endpoint
		free    int
		bounded bool
	}{
		{"nobody", nil, 0, false},
		{"nobody is ready", []*Endpoint{endpoint(4, NotReady, 0, nil), endpoint(4, Suspect, 0, nil)}, 0, false},
		{"an allowance each", []*Endpoint{endpoint(4, Ready, 0, nil), endpoint(2, Ready, 1, nil)}, 7, true},
		{"those of others count", []*Endpoint{endpoint(4, Ready, 1, &Report{Requests: 3})}, 1, true},
		{"too many at one take nothing from another", []*Endpoint{endpoint(2, Ready, 9, nil), endpoint(2, Ready, 0, nil)}, 3, true},
		{"slots not known", []*Endpoint{endpoint(0, Ready, 5, &Report{Requests: 5}), endpoint(2, Ready, 9, nil)}, 0, false},
		{"slots seen by what waits", []*Endpoint{endpoint(0, Ready, 0, &Report{Requests: 5, Waiting: 3})}, 0, true},
	}
	awaited := &Model{Awaited: true, Learned: new(Learned)}
	if free, bounded := awaited.Room(1, now); free != 0 || !bounded {
		t.Errorf("where the first endpoint is awaited, Room() = %d, %v", free, bounded)
	}
	awaited.Endpoints = []*Endpoint{endpoint(4, Suspect, 0, nil)}
	if _, bounded := awaited.Room(1, now); bounded {
		t.Error("a request waits though a suspect could be asked")
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if free, bounded := (&Model{Endpoints: tt.es, Learned: new(Learned)}).Room(1, now); free != tt.free || bounded != tt.bounded {
				t.Errorf("Room() = %d, %v; want %d, %v", free, bounded, tt.free, tt.bounded)
			}
		})
	}
}
