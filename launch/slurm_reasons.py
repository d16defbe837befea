"""Why SLURM lets a job wait, in words. Names from squeue's manual, "JOB REASON CODES"; plain data."""

from __future__ import annotations

import re

_WORDS = {
    "None": "about to be looked at by the scheduler (곧 배정)",
    "Priority": "other jobs have a higher priority (우선순위 대기)",
    "Resources": "waits for nodes to become free (자원 대기)",
    "Dependency": "waits for another job to end (앞 작업 대기)",
    "DependencyNeverSatisfied": "the job that it waits for has failed, so it never starts (앞 작업 실패); cancel it",
    "BeginTime": "its time to begin has not come, as after a requeue (시작 시각 대기)",
    "JobHeldUser": "held by its owner (사용자 보류); `scontrol release` lets it go",
    "JobHeldAdmin": "held by an administrator (관리자 보류); ask whoever runs the cluster",
    "JobArrayTaskLimit": "as many tasks of its array run as may (배열 동시 실행 한도)",
    "Licenses": "waits for a licence (라이선스 대기)",
    "Reservation": "waits for its reservation to begin (예약 대기)",
    "ReservationDeleted": "its reservation is gone (예약 삭제됨); submit it without one",
    "ReqNodeNotAvail": "nodes that it needs are down, drained or reserved (노드 사용 불가); `sinfo -R` says why",
    "NodeDown": "a node that it needs is down (노드 정지); `sinfo -R` says why",
    "Nodes_required_for_job_are_DOWN": "nodes that it needs are down, drained or reserved (노드 사용 불가); `sinfo -R` "
    "says why",
    "BadConstraints": "no node can ever fit what it asks for (조건에 맞는 노드 없음); cancel it, correct the profile",
    "PartitionDown": "its partition is down (파티션 정지); `sinfo -s` shows the others",
    "PartitionInactive": "its partition takes no jobs now (파티션 비활성)",
    "PartitionNodeLimit": "it asks for more nodes than its partition gives (파티션 노드 한도); lower --nodes",
    "PartitionTimeLimit": "its time limit is above that of its partition (파티션 시간 한도); lower time_limit",
    "AccountNotAllowed": "its account may not use this partition (계정 권한 없음)",
    "InvalidAccount": "its account is not valid (잘못된 계정); set `account` in the profile",
    "InvalidQOS": "its QoS is not valid (잘못된 QoS); set `qos` in the profile",
    "QOSNotAllowed": "its QoS may not use this partition (QoS 권한 없음)",
    "MaxMemPerLimit": "asks for more memory a node or a core than the cluster gives (메모리 한도); lower `memory`",
    "Prolog": "its nodes are being prepared (노드 준비 중)",
    "Cleaning": "is put back into the queue, its nodes are being cleaned (재대기 정리 중)",
    "InactiveLimit": "was still for too long (비활성 한도)",
    "TimeLimit": "reached its time limit (시간 한도 도달)",
    "NodeFail": "a node failed (노드 고장)",
    "NonZeroExitCode": "ended with a failure (오류로 끝남)",
    "SystemFailure": "a part of the cluster failed (시스템 장애)",
    "OutOfMemory": "was out of memory (메모리 부족); raise `memory`",
    "RaisedSignal": "was ended by a signal (신호로 끝남)",
    "launch_failed_requeued_held": "its start failed, and it is held (시작 실패, 보류); `scontrol release` tries again",
    "job_requeued_in_held_state": "was put back and held (재대기 보류); `scontrol release` lets it go",
}
# "QOSMaxGRESPerUser", "AssocGrpCPUMinutesLimit", "MaxGRESPerAccount": a limit of whom on what.
_LIMIT = re.compile(r"(?P<of>QOS|Association|Assoc|Max)(?P<what>\w*)")
_OF = {"QOS": "its QoS (QoS 한도)", "Assoc": "its account (계정 한도)", "Association": "its account (계정 한도)"}
# Of one job, not of what is in use: such a job never starts.
_OF_ONE_JOB = re.compile(r"PerJob|PerNode|WallDuration|TimeLimit|Minutes(?=PerJob)")
# What a person lowers or raises, by what the name of the limit holds; the first that it holds.
_KEYS = {
    "Wall": "time_limit",
    "Time": "time_limit",
    "Minutes": "time_limit or nodes",
    "GRES": "gpus_per_node or nodes",
    "Cpu": "cpus_per_task or nodes",
    "CPU": "cpus_per_task or nodes",
    "Mem": "memory",
    "Node": "nodes",
}


def reason_in_words(reason: str) -> str:
    """SLURM's reason for waiting as a person would say it, with the Korean term; an unknown one as SLURM names it."""
    name = re.split(r"[ ,(:]", reason.strip(), maxsplit=1)[0]
    if name in _WORDS:
        return _WORDS[name]
    if (limit := _LIMIT.fullmatch(name)) is not None:
        return f"{name}: {_limit_in_words(_OF.get(limit['of'], 'the cluster (클러스터 한도)'), limit['what'])}"
    return f"{name or 'no reason given'} (SLURM)"


def _limit_in_words(of: str, what: str) -> str:
    key = next((key for sign, key in _KEYS.items() if sign in what.replace("PerNode", "")), "what it asks for")
    if what.startswith("Min"):
        return f"it asks for less than {of} demands, and never starts; raise {key}, or take another qos"
    if _OF_ONE_JOB.search(what):
        return f"it asks for more than {of} gives one job, and never starts (작업당 한도 초과); lower {key}"
    return f"as much as {of} allows is in use already"
