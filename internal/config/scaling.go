package config

import (
	"math"
	"time"
)

// Modes of scaling.
const (
	// ScalingAuto is that xds changes the number of replicas, ScalingRecommend that it only
	// says what it would do.
	ScalingAuto      = "auto"
	ScalingRecommend = "recommend"
)

// Scaling is how the number of a model's replicas follows demand. The zero Scaling is that it
// doesn't.
//
// +kubebuilder:object:generate=true
// +millrace:rule:at="maxReplicas",missing=true,holds="has(self.maxReplicas)",words="0; must be ≥ 1"
// +millrace:rule:at="maxReplicas",when="has(self.maxReplicas) && self.maxReplicas >= 1 && self.maxReplicas <= 1024",holds="self.maxReplicas >= self.minReplicas",shows="{string(self.maxReplicas)}",words="must be ≥ {string(self.minReplicas)}, minReplicas"
// +millrace:rule:at="budget",holds="self.budget == 0.0 || self.budget >= self.cost * double(self.minReplicas > 0 ? self.minReplicas : 1)",shows="{string(self.budget)}",words="must be at least what minReplicas cost, on one node each, and what one does"
type Scaling struct {
	// Mode is "auto": xds starts and drains replicas, and spec.replicas is not in force; or
	// "recommend": it says how many there should be, in status, metrics and to KEDA, and
	// spec.replicas holds. Default "auto".
	// +kubebuilder:default=auto
	// +millrace:oneOf:values={auto,recommend}
	Mode string `json:"mode"`
	// MinReplicas is how many there are at least, 0 to 1024. With 0 there are none while
	// nobody asks: the next request waits until one has started. Default 1.
	// +kubebuilder:default=1
	// +millrace:between:least="0",most="1024"
	MinReplicas int `json:"minReplicas"`
	// MaxReplicas is how many there are at most, 1 to 1024.
	// +millrace:between:least="1",most="1024"
	MaxReplicas int `json:"maxReplicas,omitempty"`
	// Utilization is which share of what a replica was measured to do is counted on, 0.05
	// to 1. Default 0.8.
	// +kubebuilder:default=0.8
	// +millrace:between:least="0.05",most="1"
	Utilization float32 `json:"utilization"`
	// ScaleDownAfter is for how long less must have been asked before a replica is drained, 1s
	// to 24h; with a MinReplicas of 0, for how long nothing before the last one is. Default 5m.
	// +kubebuilder:default="5m"
	// +millrace:lasts:least="1s",most="24h"
	ScaleDownAfter Duration `json:"scaleDownAfter"`
	// Cost is what a node costs an hour while it has a part in a replica, 0 to 1000000, in the
	// unit of Budget. Default 1.
	// +kubebuilder:default=1
	// +millrace:between:least="0",most="1000000"
	Cost float32 `json:"cost"`
	// Budget is what all replicas together may cost an hour, those that drain included, 0 to
	// 1000000000. It is never exceeded. Default 0: as much as they will.
	// +kubebuilder:default=0
	// +millrace:between:least="0",most="1000000000"
	Budget float32 `json:"budget"`
}

func newScaling() Scaling {
	return Scaling{Mode: ScalingAuto, MinReplicas: 1, Utilization: 0.8, ScaleDownAfter: Duration{5 * time.Minute}, Cost: 1}
}

// Scaled reports whether xds changes the number of replicas.
func (s ModelSpec) Scaled() bool { return s.Scaling.Mode == ScalingAuto }

// Most is how many replicas there may be.
func (s ModelSpec) Most() int {
	if s.Scaled() {
		return s.Scaling.MaxReplicas
	}
	return s.Replicas
}

func (s Scaling) validate(path string, r *rules) {
	if s == (Scaling{}) {
		return
	}
	r.oneOf(path+".mode", s.Mode, ScalingAuto, ScalingRecommend)
	r.between(path+".minReplicas", s.MinReplicas, 0, 1024)
	had := len(*r)
	if r.between(path+".maxReplicas", s.MaxReplicas, 1, 1024); len(*r) == had && s.MaxReplicas < s.MinReplicas {
		r.broken(path+".maxReplicas", "%d; must be ≥ %d, minReplicas", s.MaxReplicas, s.MinReplicas)
	}
	r.within(path+".utilization", s.Utilization, 0.05, 1)
	r.lasts(path+".scaleDownAfter", s.ScaleDownAfter, time.Second, 24*time.Hour)
	r.within(path+".cost", s.Cost, 0, 1e6)
	r.within(path+".budget", s.Budget, 0, 1e9)
	if least := float64(s.Cost) * math.Max(1, float64(s.MinReplicas)); s.Budget != 0 && float64(s.Budget) < least {
		r.broken(path+".budget", "%g; must be at least what minReplicas cost, on one node each, and what one does", s.Budget)
	}
}
